"""What several processes that use one API key share: the rate limit, the journal, and a queue of customers.

The modules `redis`, `postgres` and `saq` need the extra of the same name.
"""
