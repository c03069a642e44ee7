"""The sources and templates of a simulated account."""

from asyncmig.simulator.migrations.tables import Column, Schema

__all__ = ["SCHEMAS", "SOURCES"]

SOURCES = ("HubSpot", "Salesforce (AU)", "Pipedrive")
"""The names of the account's sources."""
SCHEMAS = (
    Schema(
        slug="companies",
        name="Companies",
        description="Organisations",
        columns=(
            Column(name="Name", synonyms=("Company", "Account Name"), required=True, unique=True),
            Column(name="City", synonyms=("Town", "Billing City")),
            Column(name="Notes", synonyms=("Remarks",)),
        ),
    ),
    Schema(
        slug="contacts",
        name="Contacts",
        columns=(
            Column(
                name="Email",
                description="The address that a person reads",
                synonyms=("E-mail", "Email Address"),
                required=True,
                unique=True,
                strict_rule=r"^[^@\s]+@[^@\s]+\.[a-z]+$",
            ),
            Column(name="First Name", synonyms=("Given Name",)),
            Column(name="Last Name", synonyms=("Surname", "Family Name"), required=True),
            Column(name="Phone", synonyms=("Telephone", "Phone Number")),
        ),
    ),
    Schema(
        slug="deals",
        name="Deals",
        columns=(
            Column(name="Title", synonyms=("Deal Name", "Opportunity"), required=True),
            Column(name="Stage", synonyms=("Deal Stage",), strict_rule="^(lead|qualified|won|lost)$"),
            Column(name="Amount", synonyms=("Value", "Deal Value")),
            Column(
                name="Contact",
                synonyms=("Contact E-mail", "Primary Contact"),
                link_rule=({"templateId": "contacts", "columnName": "Email"},),
            ),
        ),
    ),
)
"""The templates of the account."""
