"""Measurements that results/ is made of, for maintainers to run."""
