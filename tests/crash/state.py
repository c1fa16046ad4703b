"""What a project's registry and folders hold, and what a killed process would have left among them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class State:
    """What the registry of a project holds.

    Attributes:
        champions: concept -> (version, digest of the adapter's content).
        versions: concept -> digests, by version, newest first.
        bundle: the champion bundle's pins, as `champions`.
        bundles: the pins of every bundle, newest first.
    """

    champions: dict[str, tuple[int, str]]
    versions: dict[str, list[str]]
    bundle: dict[str, tuple[int, str]] | None
    bundles: list[dict[str, tuple[int, str]]]

    def differences(self, undisturbed: State) -> list[str]:
        """In what this differs from the undisturbed state.

        A run that lost a worker, and with it a concept, bundles the champions that there are: such a part of the whole
        is no doubled version. The same bundle twice is, and the champion has to be the whole.
        """
        found = []
        if self.champions != undisturbed.champions:
            found.append(f"champions {self.champions}, undisturbed {undisturbed.champions}")
        if self.versions != undisturbed.versions:
            found.append(f"versions were lost or doubled: {self.versions}, undisturbed {undisturbed.versions}")
        if self.bundle != undisturbed.bundle:
            found.append(f"bundle {self.bundle}, undisturbed {undisturbed.bundle}")
        if any(bundle in self.bundles[:number] for number, bundle in enumerate(self.bundles)):
            found.append(f"a bundle was doubled: {self.bundles}")
        if any(not bundle.items() <= undisturbed.champions.items() for bundle in self.bundles):
            found.append(f"a bundle of other versions than the champions: {self.bundles}")
        return found


def state_of(root: Path) -> State:
    """Read the registry; the bytes of every champion are fetched and verified, and those of the bundle."""
    from components.tracking import bundles, promotion, registry
    from components.tracking.store import open_store

    store = open_store(root)
    champions, versions = {}, {}
    for name in registry.list_models(store):
        if name == bundles.NAME:
            continue
        versions[name] = [each.tags["adapter/digest"] for each in registry.versions(store, name)]
        champion = registry.by_alias(store, name)
        if champion is not None:
            assert all(check.ok for check in promotion.verify(store, name, champion.number)), name
            champions[name] = (champion.number, champion.tags["adapter/digest"])
    pinned = {
        bundle.number: {pin.name: (pin.version or 0, pin.adapter) for pin in bundles.pins(bundle)}
        for bundle in registry.versions(store, bundles.NAME)
    }
    whole = registry.by_alias(store, bundles.NAME)
    if whole is not None:
        assert all(check.ok for check in promotion.verify(store, bundles.NAME, whole.number)), "the bundle"
    return State(champions, versions, None if whole is None else pinned[whole.number], list(pinned.values()))


def leftovers(root: Path) -> list[str]:
    """Runs that still say RUNNING, files that were never finished, and folders whose manifest does not hold."""
    from components.errors import IntegrityError
    from components.files import verify_manifest
    from components.tracking import registry
    from components.tracking.store import open_store

    places = [root / ".purecc" / "artifacts", root / ".purecc" / "work"]
    found = [str(path.relative_to(root)) for place in places for path in place.rglob(".*.partial")]
    for folder in (root / ".purecc" / "artifacts").glob("*/*"):
        if folder.name.startswith("."):
            continue
        try:
            verify_manifest(folder)
        except IntegrityError as error:
            found.append(str(error))
    store = open_store(root)
    experiments = [each.experiment_id for each in store.client.search_experiments()]
    running = store.client.search_runs(experiments, "attributes.status = 'RUNNING'")
    found += [f"run {run.info.run_name} is RUNNING" for run in running]
    for name in registry.list_models(store):
        numbers = sorted(each.number for each in registry.versions(store, name))
        if numbers != list(range(1, len(numbers) + 1)):
            found.append(f"versions of {name}: {numbers}")
    return found
