"""The user's room: the steps, and the flows that join them."""
