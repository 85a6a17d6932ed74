"""Optional parts that use other libraries; each imports its library when it is used."""
