"""Who decides: the Thinker, one agent per topic, and the supervisor that ends things in order."""
