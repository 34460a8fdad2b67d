"""Any configuration on any benchmark: asked, graded and costed on the same questions, compared, and shown."""
