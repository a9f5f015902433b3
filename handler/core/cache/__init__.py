"""What is cached: looked up, published, busted, accepted, leased, remembered and explained."""
