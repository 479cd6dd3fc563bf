#!/usr/bin/env bash
# Certificates of a fleet of stations, with openssl. Keep FOLDER/ca.key where no station and no broker can read it.
#
#   certificates.sh FOLDER authority           ca.crt and ca.key, once
#   certificates.sh FOLDER broker NAME...      broker.crt and broker.key; NAME: host names and addresses, as stations say them
#   certificates.sh FOLDER client NAME...      NAME.crt and NAME.key: one a station (its `station:`), one a program
set -euo pipefail
umask 077

AUTHORITY_DAYS=3650
CERTIFICATE_DAYS=825

usage() { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
folder=$1 what=$2
shift 2
mkdir -p "$folder"
cd "$folder"

new_key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }

# sign NAME COMMON_NAME EXTENSIONS
sign() {
  if [ -e "$1.key" ]; then echo "$folder/$1.key is there already; nothing was changed." >&2; exit 1; fi
  new_key "$1.key"
  openssl req -new -key "$1.key" -subj "/CN=$2" \
    | openssl x509 -req -sha256 -days $CERTIFICATE_DAYS -CA ca.crt -CAkey ca.key \
      -set_serial "0x$(openssl rand -hex 16)" -extfile <(printf '%s\n' "basicConstraints=critical,CA:FALSE" "$3") -out "$1.crt" 2>/dev/null
  echo "$folder/$1.crt, $folder/$1.key"
}

case "$what" in
  authority)
    if [ -e ca.key ]; then echo "$folder/ca.key is there already; nothing was changed." >&2; exit 1; fi
    new_key ca.key
    openssl req -x509 -new -sha256 -key ca.key -days $AUTHORITY_DAYS -subj "/CN=${1:-so-agent fleet}" -out ca.crt \
      -config <(printf '[req]\ndistinguished_name=dn\nx509_extensions=ext\n[dn]\n[ext]\nbasicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n')
    echo "$folder/ca.crt, $folder/ca.key"
    ;;
  broker)
    [ $# -ge 1 ] || usage
    names=""
    for name in "$@"; do
      if [[ $name =~ ^[0-9.]+$ || $name == *:* ]]; then kind=IP; else kind=DNS; fi
      names+="${names:+,}$kind:$name"
    done
    sign broker "$1" "extendedKeyUsage=serverAuth
subjectAltName=$names"
    ;;
  client)
    [ $# -ge 1 ] || usage
    for name in "$@"; do
      if ! [[ $name =~ ^[a-z0-9][a-z0-9_-]{0,62}$ ]]; then echo "$name: not a name of a station" >&2; exit 2; fi
      sign "$name" "$name" "extendedKeyUsage=clientAuth"
    done
    ;;
  *) usage ;;
esac
