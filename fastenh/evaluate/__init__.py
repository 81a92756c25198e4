"""How good the enhancement is: metrics, tables, comparison."""
