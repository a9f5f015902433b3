"""Steps, flows and parameters as their author declares them, and the manifest that describes them."""
