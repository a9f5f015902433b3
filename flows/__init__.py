"""Your flows: the steps, and the pipeline that joins them."""
