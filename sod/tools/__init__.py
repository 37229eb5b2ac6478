"""Tools: plain functions a model may call, and the runner that calls them."""
