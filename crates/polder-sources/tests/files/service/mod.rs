//! Needs an S3 server with the bucket `polder-ready`: `POLDER_TEST_S3_ENDPOINT`, `S3_ACCESS_KEY`,
//! `S3_SECRET_KEY`.

mod s3;
mod support;
