"""What a maintainer runs: measurements that results/ is made of."""
