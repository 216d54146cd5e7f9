//! The API's description (`OpenAPI` 3.1), made from the routes' own types. `openapi/polder.json` is a
//! copy of it; a test compares them.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use polder_core::spec::{TablePatch, TableSpec, TemplateSpec};
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};
use utoipa::OpenApi;
use utoipa::openapi::{Ref, RefOr, schema::Schema};

use super::{
    bootstrap, events, headers, health, keys, lake, logs, maintenance, orgs, problem, query, runs,
    scheduling, sources, tables, templates, usage, validations,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Polder",
        description = "Orgs, the tables of their pipelines, and runs. Changes take `?dry_run=true`; \
                       orgs, tables, templates, runs, keys, schedules and sources have an ETag, \
                       which `If-Match` takes; POST, PUT, PATCH and DELETE take an `Idempotency-Key`, good for 24 hours, and \
                       `Polder-Reason`, which the history keeps. An org that is not the caller's \
                       looks like one that is not there.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    paths(
        orgs::list,
        orgs::create,
        orgs::read,
        orgs::update,
        orgs::disable,
        orgs::history,
        usage::read,
        templates::list,
        templates::read,
        templates::put,
        templates::update,
        templates::remove,
        templates::history,
        tables::list,
        tables::add,
        tables::read,
        tables::update,
        tables::remove,
        tables::undo,
        bootstrap::bootstrap,
        lake::schema,
        lake::sample,
        lake::versions,
        lake::rollback,
        maintenance::list,
        query::query,
        runs::list,
        runs::trigger,
        runs::read,
        runs::cancel,
        runs::operation,
        events::watch,
        logs::read,
        scheduling::list,
        scheduling::pause_org,
        scheduling::resume_org,
        scheduling::pause_table,
        scheduling::resume_table,
        scheduling::read_source,
        scheduling::pause_source,
        scheduling::resume_source,
        scheduling::retry,
        validations::list,
        validations::trigger,
        validations::read,
        sources::list,
        sources::discover,
        keys::list,
        keys::create,
        keys::read,
        keys::revoke,
        keys::rotate,
        health::read,
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
    let (_, _, patch) = (
        generator.subschema_for::<TableSpec>(),
        generator.subschema_for::<TemplateSpec>(),
        generator.subschema_for::<TablePatch>(),
    );
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
    refer_to_specs(&mut document);
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
        "headers": headers::of_problems(),
        "content": {
            "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } },
        },
    });
    headers::describe(&mut document);
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    for (_, operation) in paths.filter_map(|(_, path)| path.as_object_mut()).flatten() {
        streams(&mut operation["responses"]);
        operation["responses"]["default"] = problem.clone();
    }
    document
}

/// Parts of documents that are parts of pipeline files, described by their own JSON Schemas.
fn refer_to_specs(document: &mut Value) {
    let named = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
    let maybe = |name: &str| json!({ "oneOf": [{ "type": "null" }, named(name)] });
    for name in ["Org", "NewOrg", "OrgChange", "Template"] {
        let fields = &mut document["components"]["schemas"][name]["properties"];
        let description = fields["schedule"]["description"].take();
        fields["schedule"] = maybe("ScheduleSpec");
        if !description.is_null() {
            fields["schedule"]["description"] = description;
        }
    }
    let tables = &mut document["components"]["schemas"]["Template"]["properties"]["tables"];
    tables["items"] = named("TableSpec");
    let groups = &mut document["components"]["schemas"]["Template"]["properties"]["groups"];
    groups["additionalProperties"] = named("GroupSpec");
    let groups = &mut document["components"]["schemas"]["OrgChange"]["properties"]["groups"];
    groups["additionalProperties"] = json!({ "type": ["boolean", "null"] });
    let template = &mut document["paths"]["/v1/templates/{template}"];
    template["put"]["requestBody"]["content"]["application/json"]["schema"] = named("TemplateSpec");
    let patch = &mut template["patch"]["requestBody"]["content"]["application/merge-patch+json"];
    patch["schema"] = json!({
        "type": "object",
        "properties": {
            "schedule": { "type": ["object", "null"], "description": "Settings of a schedule." },
            "limits": { "type": ["object", "null"], "description": "Limits of each org." },
            "groups": {
                "type": ["object", "null"],
                "additionalProperties": { "type": ["object", "null"] },
                "description": "Settings of groups, by name; null takes a group out.",
            },
            "tables": {
                "oneOf": [
                    {
                        "type": "object",
                        "additionalProperties": { "type": ["object", "null"] },
                        "description": "Settings of tables, by name; null takes a table out.",
                    },
                    { "type": "array", "items": named("TableSpec"), "description": "All tables." },
                ],
            },
        },
        "additionalProperties": false,
    });
}

/// Bodies that are no JSON: binary ones have no schema, and that of server-sent events is each event's.
fn streams(responses: &mut Value) {
    let responses = responses.as_object_mut().into_iter().flatten();
    let contents =
        responses.filter_map(|(_, response)| response.get_mut("content")?.as_object_mut());
    for (media_type, body) in contents.flatten() {
        match media_type.as_str() {
            "text/event-stream" => {
                let data = body["schema"].take();
                body["schema"] = event(&data);
            }
            "application/vnd.apache.arrow.stream" | "application/x-tar" => {
                body["schema"] = json!({});
            }
            _ => {}
        }
    }
}

/// A server-sent event that holds a document.
fn event(document: &Value) -> Value {
    json!({
        "type": "object",
        "required": ["event", "data"],
        "properties": {
            "event": { "type": "string", "enum": ["progress", "ended"] },
            "data": {
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": document,
            },
        },
    })
}

pub(super) async fn serve() -> Response {
    // Made of texts, once.
    static TEXT: LazyLock<Vec<u8>> =
        LazyLock::new(|| serde_json::to_vec(&document()).unwrap_or_default());
    ([(header::CONTENT_TYPE, "application/json")], TEXT.as_slice()).into_response()
}
