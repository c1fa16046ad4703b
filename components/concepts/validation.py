"""Judging the facts of a concept folder with great-expectations, and its data docs.

`facts` computes, `rules` says what is right, this module makes suites of the rules, runs them and maps every value
that fails to a `Finding`. Errors block, warnings are recorded.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import great_expectations as gx
import pandas as pd
from great_expectations.core import ExpectationSuiteValidationResult
from great_expectations.data_context.data_context.ephemeral_data_context import EphemeralDataContext
from great_expectations.expectations.core.expect_column_values_to_be_between import ExpectColumnValuesToBeBetween
from great_expectations.expectations.core.expect_column_values_to_be_in_set import ExpectColumnValuesToBeInSet
from great_expectations.expectations.core.expect_column_values_to_be_null import ExpectColumnValuesToBeNull
from great_expectations.expectations.expectation import Expectation

from components.concepts import data_docs
from components.concepts import facts as concept_facts
from components.concepts.concept import folder_problem
from components.concepts.findings import Finding, ValidationReport
from components.concepts.rules import Rule, Table, rules
from components.settings import ConceptSettings

logger = logging.getLogger(__name__)


def validate(folder: Path, settings: ConceptSettings, docs_dir: Path) -> ValidationReport:
    """Judge a concept folder and build its data docs into `docs_dir`, which is replaced.

    Raises:
        InvalidInput: there is no such folder (whatever is wrong inside it becomes a finding), or `docs_dir` holds
            something else.
    """
    problem = folder_problem(folder)
    if problem:
        raise problem
    facts = concept_facts.gather(folder)
    tables: dict[Table, pd.DataFrame] = {
        "structure": facts.structure,
        "images": facts.images,
        "concept": facts.concept,
    }
    kind = facts.concept["kind"].iloc[0]
    judged = rules(settings, kind=kind)
    context = data_docs.new_context(docs_dir)
    findings: dict[str, list[Finding]] = {}
    summary: dict[str, str] = {}
    for table in get_args(Table):
        ours = {rule.key: rule for rule in judged if rule.table == table}
        failures = _failures(context, f"{folder.name}-{table}", tables[table], ours)
        for key, rows in failures.items():
            findings[key] = [_finding(ours[key], folder, tables[table].iloc[row].to_dict()) for row in rows]
        summary[f"{folder.name}-{table}"] = f"{len(ours) - len(failures)} of {len(ours)} expectations hold"
    index = data_docs.build(context, docs_dir, summary)
    errors = [finding for rule in judged if not rule.warning for finding in findings.get(rule.key, [])]
    warnings = [finding for rule in judged if rule.warning for finding in findings.get(rule.key, [])]
    if any(finding.expectation == "references_enough" for finding in errors):
        warnings = [finding for finding in warnings if finding.expectation != "references_comfortable"]
    logger.info("%s: %d errors, %d warnings, %s", folder.name, len(errors), len(warnings), index)
    return ValidationReport(folder.name, errors, warnings, facts.images, index)


def _failures(
    context: EphemeralDataContext, name: str, table: pd.DataFrame, judged: Mapping[str, Rule]
) -> dict[str, list[int]]:
    """Rule -> the positions of the rows that fail it."""
    source = context.data_sources.add_pandas(name)
    batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
    suite = context.suites.add(gx.ExpectationSuite(name))
    for rule in judged.values():
        suite.add_expectation(_expectation(rule))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=suite))
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(name=name, validation_definitions=[definition], result_format="COMPLETE")
    )
    outcome = checkpoint.run(batch_parameters={"dataframe": _shown(table, judged)})
    return {key: rows for validation in outcome.run_results.values() for key, rows in _rows(validation)}


def _shown(table: pd.DataFrame, judged: Mapping[str, Rule]) -> pd.DataFrame:
    """The table for great-expectations, which puts values into its pages as they are: no text of it is markup.

    Rows stay where they are. In columns that are compared with given words the quotes stay, for words may hold them.
    """
    compared = {rule.column for rule in judged.values() if rule.check == "in_set"}
    return pd.DataFrame(
        {
            column: [
                html.escape(value, quote=column not in compared) if isinstance(value, str) else value
                for value in table[column]
            ]
            for column in table.columns
        },
        columns=table.columns,
        dtype=object,
    )


def _rows(validation: ExpectationSuiteValidationResult) -> Sequence[tuple[str, list[int]]]:
    found = []
    for result in validation.results:
        config = result.expectation_config
        raised = (result.exception_info or {}).get("raised_exception")
        if config is None or raised:  # a rule that cannot be judged must never pass for one that holds
            raise RuntimeError(f"great-expectations could not judge {config and config.meta}: {result.exception_info}")
        if not result.success:
            found.append((str(config.meta["rule"]), [int(row) for row in result.result["unexpected_index_list"]]))
    return found


def _expectation(rule: Rule) -> Expectation:
    common: dict[str, Any] = {
        "column": rule.column,
        "severity": "warning" if rule.warning else "critical",
        "meta": {"rule": rule.key},
        "notes": f"{rule.key}: {rule.problem}. Mend: {rule.mend}",
    }
    if rule.check == "null":
        return ExpectColumnValuesToBeNull(**common)
    if rule.check == "between":
        return ExpectColumnValuesToBeBetween(**common, **rule.bounds)
    return ExpectColumnValuesToBeInSet(**common, **rule.bounds)


def _finding(rule: Rule, folder: Path, row: Mapping[Any, Any]) -> Finding:
    def filled(template: str) -> str:
        return template.format_map(row)

    return Finding(
        expectation=rule.key,
        field=filled(rule.where),
        value=row[rule.column],
        mend=filled(rule.mend),
        file=str(folder / filled(rule.file)),
        problem=filled(rule.problem),
    )
