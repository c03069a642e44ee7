"""The first generation of the Migration API: the only place that knows its routes and shapes."""
