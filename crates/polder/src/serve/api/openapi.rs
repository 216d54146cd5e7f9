//! The API's description (`OpenAPI` 3.1), made from the routes' own types. `openapi/polder.json` is a
//! copy of it; a test compares them.

use axum::http::StatusCode;
use axum::response::Response;
use polder_core::spec::{TablePatch, TableSpec};
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};
use utoipa::OpenApi;
use utoipa::openapi::{Ref, RefOr, schema::Schema};

use super::paging::answer;
use super::{bootstrap, lake, orgs, problem, query, runs, sources, tables};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Polder",
        description = "Orgs, the tables of their pipelines, and runs. Changes take `?dry_run=true`; \
                       orgs and tables have an ETag, which `If-Match` takes; POST, PATCH and DELETE \
                       take an `Idempotency-Key`, good for 24 hours, and `Polder-Reason`, which the \
                       history keeps. An org that is not the caller's looks like one that is not there.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    paths(
        orgs::list,
        orgs::create,
        orgs::read,
        orgs::update,
        orgs::disable,
        orgs::history,
        tables::list,
        tables::add,
        tables::read,
        tables::update,
        tables::remove,
        bootstrap::bootstrap,
        lake::schema,
        lake::sample,
        lake::versions,
        lake::rollback,
        query::query,
        runs::list,
        runs::trigger,
        runs::read,
        runs::cancel,
        runs::operation,
        sources::list,
        sources::discover,
    ),
    components(schemas(problem::Problem))
)]
struct Api;

/// Where a table spec is described: by its own JSON Schema.
pub(super) fn table_spec() -> RefOr<Schema> {
    RefOr::Ref(Ref::from_schema_name("TableSpec"))
}

/// The whole description.
pub(crate) fn document() -> Value {
    // Made of texts.
    let mut document = serde_json::to_value(Api::openapi()).unwrap_or_default();
    let settings = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    let (_, patch) =
        (generator.subschema_for::<TableSpec>(), generator.subschema_for::<TablePatch>());
    for (name, schema) in generator.take_definitions(true) {
        document["components"]["schemas"][name] = schema;
    }
    let mut new = document["components"]["schemas"]["TableSpec"].clone();
    new["required"] = json!(["name"]);
    new["description"] = json!("A table to be added: what is not said is resolved.");
    document["components"]["schemas"]["NewTable"] = new;
    let tables = &mut document["paths"]["/v1/orgs/{org}/tables"]["post"]["requestBody"];
    tables["content"]["application/json"]["schema"] =
        json!({ "$ref": "#/components/schemas/NewTable" });
    let table = &mut document["paths"]["/v1/orgs/{org}/tables/{table}"]["patch"]["requestBody"];
    table["content"]["application/merge-patch+json"]["schema"] = json!(patch);
    document["components"]["securitySchemes"] = json!({
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "A key of `polder keys create`.",
        },
    });
    document["security"] = json!([{ "key": [] }]);
    let problem = json!({
        "description": "What went wrong, and what to do about it.",
        "content": {
            "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } },
        },
    });
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    for operation in paths.filter_map(|(_, path)| path.as_object_mut()).flatten() {
        operation.1["responses"]["default"] = problem.clone();
    }
    document
}

pub(super) async fn serve() -> Response {
    answer(StatusCode::OK, &document())
}
