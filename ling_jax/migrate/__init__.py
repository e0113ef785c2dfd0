"""From Ling 2.0 (GQA) to the Lightning + MLA hybrid: conversions of layers, and the plan that trains between them."""
