"""The grammar behind the function-calling task: word lists, spoken numbers and times, and the clauses built of them."""
