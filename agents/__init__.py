"""Who decides: the Thinker, one agent per topic, the policies, and the supervisor that ends things in order."""
