// A real OpenID provider on a free port of 127.0.0.1, for `test_oidc.py`. It prints its issuer. A line on stdin
// has it sign with a new key: `rotate` keeps the one before, `withdraw` does not.
import { createServer } from "node:http";
import { generateKeyPairSync, randomUUID } from "node:crypto";
import { createInterface } from "node:readline";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// From the folder it was installed into, which is not this one.
const require = createRequire(`${process.argv[2]}/`);
const { Provider } = await import(pathToFileURL(require.resolve("oidc-provider")));

const AUDIENCE = "https://polder.example";
// By client: what the tokens say. `other` is for another audience.
const CLAIMS = {
  operator: { polder_role: "operator" },
  writer: { polder_role: "writer", polder_orgs: ["401"] },
  reader: { polder_role: ["reader"], polder_orgs: "401" },
  agent: { polder_role: "agent", polder_orgs: ["401"] },
  orgless: { polder_role: "writer" },
  nobody: {},
  stranger: { polder_role: "owner", polder_orgs: ["401"] },
  other: { polder_role: "operator" },
};

const kinds = {
  RS256: () => generateKeyPairSync("rsa", { modulusLength: 2048 }),
  ES256: () => generateKeyPairSync("ec", { namedCurve: "P-256" }),
};

function key(alg) {
  const jwk = kinds[alg]().privateKey.export({ format: "jwk" });
  return { ...jwk, alg, use: "sig", kid: randomUUID() };
}

function provider(issuer, keys) {
  const resource = (client) => ({
    scope: "api",
    audience: client === "other" ? "https://other.example" : AUDIENCE,
    accessTokenFormat: "jwt",
    accessTokenTTL: 600,
    jwt: { sign: { alg: keys[0].alg } },
  });
  return new Provider(issuer, {
    jwks: { keys },
    clients: Object.keys(CLAIMS).map((id) => ({
      client_id: id,
      client_secret: `${id}-secret`,
      grant_types: ["client_credentials"],
      redirect_uris: [],
      response_types: [],
      token_endpoint_auth_method: "client_secret_post",
      id_token_signed_response_alg: keys[0].alg,
    })),
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => AUDIENCE,
        getResourceServerInfo: (_ctx, _resource, client) => resource(client.clientId),
      },
    },
    extraTokenClaims: (_ctx, token) => CLAIMS[token.clientId],
  });
}

let serve;
const server = createServer((request, response) => serve(request, response));
server.listen(0, "127.0.0.1", () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  let keys = [key("RS256")];
  const begin = () => {
    serve = provider(issuer, keys).callback();
  };
  begin();
  console.log(issuer);
  createInterface({ input: process.stdin }).on("line", (line) => {
    keys = line === "rotate" ? [key("ES256"), ...keys] : [key("ES256")];
    begin();
    console.log(line);
  }).on("close", () => process.exit(0));
});
