"""The error of a refused upload shows the reason of the storage without secrets."""

import pytest

from asyncmig._io.storage import storage_error

KEY_ID, SIGNATURE, TOKEN = "AKIAQQQQZZZZWWWWXXXX", "b0a1c2d3e4f5b0a1c2d3e4f5b0a1c2d3", "short9"
URL = (
    f"https://files.s3.test/tenant-bucket/upload%2F1.csv?X-Amz-Credential={KEY_ID}%2F20260101%2Fus-east-1"
    f"&X-Amz-Security-Token={TOKEN}&X-Amz-Signature={SIGNATURE}&sig=ab%2Bcd%3D"
)
S3 = f"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>SignatureDoesNotMatch</Code><Message>The request signature we calculated does not match</Message>
<AWSAccessKeyId>{KEY_ID}</AWSAccessKeyId><StringToSign>AWS4-HMAC-SHA256 {SIGNATURE}</StringToSign></Error>"""
AZURE = f"""\ufeff<?xml version="1.0" encoding="utf-8"?><Error><Code>AuthenticationFailed</Code>
<Message>Server failed to authenticate the request.
RequestId:0f0f0f0f-0000-1111-2222-333344445555
Time:2026-01-01T00:00:00Z</Message><AuthenticationErrorDetail>Signature did not match. String to sign used was rw
{SIGNATURE}</AuthenticationErrorDetail></Error>"""


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (S3, "SignatureDoesNotMatch: The request signature we calculated does not match"),
        (AZURE, "AuthenticationFailed: Server failed to authenticate the request."),
        ("<Error><Code>EntityTooLarge</Code></Error>", "EntityTooLarge"),
        (
            '{"error": {"code": 403, "message": "no access to tenant-bucket", "status": "PERMISSION_DENIED"}}',
            "PERMISSION_DENIED: no access to ***",
        ),
        ('{"statusCode": "413", "error": "Payload too large", "message": "Too large"}', "Too large"),
        ('{"error": "The URL has expired"}', "The URL has expired"),
        (
            "<html><head><title>413 Request Entity Too Large</title></head><body>x</body></html>",
            "413 Request",
        ),
        ("Access to the bucket was refused", "Access to the bucket was refused"),
        (
            f"<Error><Code>{KEY_ID}!</Code><Message>The key id {KEY_ID} is unknown</Message></Error>",
            "The key",
        ),
        (
            f"<Error><Message>GET {URL} has expired &amp; is gone</Message></Error>",
            "GET *** has expired & is",
        ),
        (f"<Message>token={TOKEN}, sig=ab+cd= or ab%2Bcd%3D, Signature: {SIGNATURE}</Message>", "***"),
        ("<Message>string to sign: PUT&#10;/x</Message>", "***"),
        ("<Message>\x1b[31mred \u202e dire</Message>", "[31mred   dire"),
        ("", ""),
        ("{", ""),
        ("[]", ""),
        # Simpler patterns take quadratic time or worse on these bodies.
        ("<Error>" * 10_000, ""),
        ("<Error><Code>" + " " * 65_000, ""),
        ("<Message " * 7_000, ""),
        ("token" * 13_000, "***"),
        ("string-to-sig" * 5_000, "***"),
        ("A" * 65_536, "***"),
    ],
)
def test_code_and_message_are_shown_without_secrets(body: str, reason: str) -> None:
    shown = storage_error(403, body.encode(), URL).reason
    assert shown.startswith(reason)
    assert bool(shown) == bool(reason)
    assert len(shown) <= 300
    for secret in (
        KEY_ID,
        SIGNATURE,
        TOKEN,
        "ab+cd",
        "ab%2Bcd",
        "tenant-bucket",
        "s3.test",
        "rw",
        "PUT",
        "\x1b",
    ):
        assert secret not in shown
