"""How good a text is: a model's own view, reward models, a remote scorer, and weighted pools of them."""
