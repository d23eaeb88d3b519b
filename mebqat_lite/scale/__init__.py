"""The same training, faster: mixed precision, compiled, all tasks in one pass, or several processes."""
