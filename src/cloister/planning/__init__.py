"""What goes inside: choosing layers, and the plan that records the choice."""
