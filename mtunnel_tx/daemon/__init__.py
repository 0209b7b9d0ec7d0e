"""The daemon: joins the parts, starts and stops them."""
