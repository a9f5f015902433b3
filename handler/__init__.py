"""What runs inside Lambda, and the face a flow author imports from."""
