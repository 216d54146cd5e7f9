"""docs/reference/types.md is what the cases and the lake's tables say."""

import os

from fidelity import mongodb, postgres
from fidelity.lake import lake_types
from fidelity.mongodb_lake import collection
from fidelity.page import PAGE, page
from fidelity.postgres_lake import table


def test_the_page_is_up_to_date(postgres_exact, bson_lake):
    lake, _ = postgres_exact
    of_postgres = {
        type_.title: lake_types(lake, "exact", table(type_)) for type_ in postgres.TYPES
    }
    lake, _ = bson_lake
    of_bson = {case.name: lake_types(lake, "bson", collection(case)) for case in mongodb.TYPES}
    made = page(of_postgres, of_bson)
    if os.environ.get("POLDER_FIDELITY_PAGE") == "write":
        PAGE.write_text(made)
    assert PAGE.read_text() == made, "write it again with `cargo xtask fidelity`"
