//! An S3 server with real signature checks: SeaweedFS from the Python environment. For tests it also
//! offers an Iceberg REST catalog, whose tables are in a bucket of their own.

use std::fs;

use serde_json::{Value, json};

use super::state::Running;
use super::{Instance, free_ports, python, spawn_logged};
use crate::command::{command, output};
use crate::{Result, places};

/// The credentials of the one identity; the server listens on 127.0.0.1 alone.
pub(crate) const ACCESS_KEY: &str = "testkey";
pub(crate) const SECRET_KEY: &str = "testsecret";

/// The role that sessions take on; `interop/test_rest_catalog_s3.py` names it too.
const ROLE: &str = "arn:aws:iam::000000000000:role/polder";

/// The bucket of tables of the Iceberg catalog.
pub(crate) const TABLES: &str = "polder-tables";

/// Writes and reads an object: the server lists buckets before it has a volume to write to.
const ROUND_TRIP: &str = "
import sys, boto3, botocore.config
endpoint, access_key, secret_key, tables = sys.argv[1:]
config = botocore.config.Config(
    connect_timeout=2, read_timeout=10, retries={'max_attempts': 1}, s3={'addressing_style': 'path'}
)
keys = dict(aws_access_key_id=access_key, aws_secret_access_key=secret_key)
server = dict(endpoint_url=endpoint, region_name='us-east-1', config=config, **keys)
s3 = boto3.client('s3', **server)
if 'polder-ready' not in [bucket['Name'] for bucket in s3.list_buckets()['Buckets']]:
    s3.create_bucket(Bucket='polder-ready')
s3.put_object(Bucket='polder-ready', Key='ready', Body=b'yes')
assert s3.get_object(Bucket='polder-ready', Key='ready')['Body'].read() == b'yes'
if tables:
    catalog = boto3.client('s3tables', **server)
    if tables not in [found['name'] for found in catalog.list_table_buckets().get('tableBuckets', [])]:
        catalog.create_table_bucket(name=tables)
";

pub(super) fn endpoint(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

pub(super) fn probe(running: &Running) -> Result {
    let tables = running.side_port.map_or("", |_| TABLES);
    let endpoint = endpoint(running.port);
    let mut round_trip = python(ROUND_TRIP, &[&endpoint, ACCESS_KEY, SECRET_KEY, tables]);
    output("S3 round trip", &mut round_trip).map(drop)
}

pub(super) fn spawn(instance: &Instance) -> Result<Running> {
    let data = instance.dir.join("s3");
    let failed = |error| format!("cannot write below {}: {error}", data.display());
    fs::create_dir_all(&data).map_err(failed)?;
    let credentials = json!({ "accessKey": ACCESS_KEY, "secretKey": SECRET_KEY });
    let actions = json!(["Admin", "Read", "List", "Tagging", "Write"]);
    let identity = json!({ "name": "admin", "credentials": [credentials], "actions": actions });
    let config = instance.dir.join("s3.json");
    fs::write(&config, json!({ "identities": [identity] }).to_string()).map_err(failed)?;

    let ports: [u16; 9] = free_ports()?;
    let iceberg = instance.has_catalogs().then_some(ports[8]);
    let flags = ["master", "volume", "filer", "s3"];
    let mut server = command(places::venv_bin("weed"));
    server.args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]);
    server.arg(format!("-dir={}", data.display())).current_dir(&data);
    server.args(["-master.volumeSizeLimitMB=256", "-volume.max=400", "-master.telemetry=false"]);
    for (flag, pair) in flags.iter().zip(ports.chunks(2)) {
        server.arg(format!("-{flag}.port={}", pair[0]));
        server.arg(format!("-{flag}.port.grpc={}", pair[1]));
    }
    server.args(["-filer", "-s3", "-s3.port.lance=0"]);
    server.arg(format!("-s3.port.iceberg={}", iceberg.unwrap_or(0)));
    if iceberg.is_some() {
        let tokens = instance.dir.join("s3-tokens.json");
        fs::write(&tokens, token_service().to_string()).map_err(failed)?;
        server.arg(format!("-s3.iam.config={}", tokens.display()));
        server.arg(format!("-s3.iceberg.credentialRole={ROLE}"));
    }
    server.arg(format!("-s3.config={}", config.display()));
    let log = instance.dir.join("s3.log");
    let process = spawn_logged(&mut server, &log)?;
    Ok(Running { process, port: ports[6], side_port: iceberg, log })
}

/// The token service, by which `polder serve` and the Iceberg catalog hand out keys for single tables.
fn token_service() -> Value {
    let by_the_catalog = json!({
        "Effect": "Allow",
        "Principal": { "Federated": "iceberg-catalog" },
        "Action": ["sts:AssumeRole", "sts:AssumeRoleWithCredentials"],
    });
    let by_the_account =
        json!({ "Effect": "Allow", "Principal": { "AWS": "*" }, "Action": "sts:AssumeRole" });
    let everything = json!({
        "Effect": "Allow",
        "Action": ["s3:*"],
        "Resource": ["arn:aws:s3:::*", "arn:aws:s3:::*/*"],
    });
    let policy =
        |statements: &[&Value]| json!({ "Version": "2012-10-17", "Statement": statements });
    json!({
        "sts": {
            "tokenDuration": "1h",
            "maxSessionLength": "12h",
            "issuer": "polder-test",
            // The server listens on 127.0.0.1 alone.
            "signingKey": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
        },
        "providers": [],
        "policy": { "defaultEffect": "Deny", "storeType": "memory" },
        "roles": [{
            "roleName": "polder",
            "roleArn": ROLE,
            "trustPolicy": policy(&[&by_the_catalog, &by_the_account]),
            "attachedPolicies": ["Tables"],
        }],
        "policies": [{ "name": "Tables", "document": policy(&[&everything]) }],
    })
}
