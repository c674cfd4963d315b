"""Networks: a frozen config describes one, `config.build()` makes it, `cost` counts it."""
