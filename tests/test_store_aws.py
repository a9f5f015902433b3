"""AWS set up in a way that the store cannot use: real processes, exit codes, never a miss."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import servers

RUN = [
    sys.executable,
    "-c",
    "from pfl.cli.main import main; main()",
    "invoke",
    "--id",
    "abc",
    "--cached-only",
    "--engine",
    "direct",
]
SSO = """
[profile single]
sso_session = one
sso_account_id = 123456789012
sso_role_name = reader
[sso-session one]
sso_region = eu-west-1
sso_start_url = https://example.invalid/start
"""


@pytest.fixture
def ask(project, tmp_path, s3_env):
    """Ask for a hit with these AWS files, and only the given AWS variables."""
    (tmp_path / "config").write_text("[profile work]\nregion = eu-west-1\n" + SSO)
    (tmp_path / "credentials").write_text(
        "[work]\naws_access_key_id = AKIDWORK\naws_secret_access_key = secret\n"
        "[half]\naws_access_key_id = x\n"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    clean |= {
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
    }
    clean |= {"AWS_EC2_METADATA_DISABLED": "true", "PFL_STORE": "s3://bucket/pfl"}

    def run(**environ: str) -> tuple[int, str]:
        done = subprocess.run(RUN, capture_output=True, text=True, env=clean | environ)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr

    return run


def test_credentials_of_a_profile_are_found_as_any_aws_tool_finds_them(ask, bucket, s3_url):
    code, said = ask(AWS_PROFILE="work", AWS_ENDPOINT_URL=s3_url, PFL_STORE=f"s3://{bucket}/pfl")
    assert (code, "is not in the cache for 'abc'" in said) == (3, True)


@pytest.mark.parametrize(
    ("profile", "code", "told"),
    [
        ("", 5, "set AWS_PROFILE, or AWS_ACCESS_KEY_ID"),
        ("nobody", 5, "The config profile (nobody) could not be found"),
        ("half", 5, "Partial credentials found"),
        ("single", 5, "aws sso login"),
    ],
)
def test_credentials_that_are_not_there_are_told_with_what_to_do(ask, s3_url, profile, code, told):
    found, said = ask(AWS_ENDPOINT_URL=s3_url, **({"AWS_PROFILE": profile} if profile else {}))
    assert (found, told in said) == (code, True), said


@pytest.mark.parametrize(
    ("status", "answer", "told"),
    [
        (400, "ExpiredToken", "have expired"),
        (403, "InvalidAccessKeyId", "check the AWS credentials"),
        (403, "AccessDenied", "grant this identity access"),
        (301, "PermanentRedirect", "set AWS_REGION to it"),
        (400, "AuthorizationHeaderMalformed", "set AWS_REGION to it"),
        (404, "NoSuchBucket", "create the bucket"),
    ],
)
def test_what_s3_refuses_is_told_with_what_to_do(ask, s3_env, status, answer, told):
    with servers.Loopback(lambda method, path: servers.s3_error(status, answer)) as refusing:
        code, said = ask(**s3_env | {"AWS_ENDPOINT_URL": refusing.url})
    assert (code, told in said) == (5, True), said
    assert len(refusing.asked) == 1
