"""The servers of infra/compose.yaml as processes of this machine, for tests."""
