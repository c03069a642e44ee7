"""Drive hundreds of customer data migrations at once through a rate-limited Migration API."""
