"""WebShop: buy what an instruction asks for, on a shop's text pages (arXiv 2207.01206). See environment.py."""
