// Hosts that only this machine can reach: the ones that may be spoken to without TLS.
import { isIPv4 } from 'node:net';

/** Whether a host name or an IP address (an IPv6 one with or without brackets) is of this machine alone. */
export function isLoopback(host: string): boolean {
  return (
    host === 'localhost' || host === '::1' || host === '[::1]' || (isIPv4(host) && host.startsWith('127.'))
  );
}
