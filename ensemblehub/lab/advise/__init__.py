"""`ensemblehub advise`: which strategy pays for a pair of models on a task."""
