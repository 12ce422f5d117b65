"""Starting a command on several processes."""
