"""What `ensemblehub init` copies: code that runs and keeps its contract; `My...` becomes the new class's name."""
