"""Images for consumers: checked requests, one base in memory, adapters by the names in a prompt."""
