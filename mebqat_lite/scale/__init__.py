"""Train faster: in mixed precision, with compiled passes, with all tasks in one pass, or in several processes."""
