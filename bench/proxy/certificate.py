"""Makes the certificate of a run: self-signed, for the loopback address, gone with the run."""

from __future__ import annotations

import subprocess
from pathlib import Path

from machine import BenchError


def make(openssl: Path, folder: Path) -> dict[str, str]:
    """Paths of the certificate, its key, and both in one file, as the configurations name them."""
    certificate, key, pem = folder / "certificate.pem", folder / "key.pem", folder / "both.pem"
    command = [
        *(str(openssl), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-days", "2", "-subj", "/CN=bench.example", "-keyout", str(key), "-out", str(certificate)),
        *("-addext", "subjectAltName=DNS:bench.example,IP:127.0.0.1"),
        # A client that trusts exactly this certificate refuses one that calls itself an authority.
        *("-addext", "basicConstraints=critical,CA:FALSE"),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise BenchError(f"openssl made no certificate:\n{done.stderr}")
    pem.write_bytes(certificate.read_bytes() + key.read_bytes())
    return {"certificate": str(certificate), "key": str(key), "pem": str(pem)}
