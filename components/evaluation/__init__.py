"""What a customized model kept of the original one, and how well it drew the concept."""
