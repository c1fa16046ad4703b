"""What kills at critical moments leave behind."""
