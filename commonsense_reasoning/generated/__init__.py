"""Eight small tasks in the shape of the real ones, generated from facts that this package writes down."""
