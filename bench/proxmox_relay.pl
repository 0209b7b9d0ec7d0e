#!/usr/bin/perl
# A relay from websockets to UNIX sockets, built as the HTTP server of Proxmox VE is: one Perl process, AnyEvent, frames
# taken apart in Perl, and no bound on what waits for a slow side. Written for this benchmark; it shares no code with it.
#
#   perl proxmox_relay.pl PORT CERTIFICATE KEY
#
# Each websocket names its UNIX socket: GET /?socket=PATH. Serves until killed.
use strict;
use warnings;

use AnyEvent;
use AnyEvent::Handle;
use AnyEvent::Socket;
use AnyEvent::TLS;
use Digest::SHA qw(sha1_base64);

use constant {
    GUID => '258EAFA5-E914-47DA-95CA-C5AB0DC85B11',
    BINARY => 2, CLOSE => 8, PING => 9, PONG => 10,
    MOST_PAYLOAD => 65535,    # in the frames that leave: their length has 16 bits
};

my %clients;    # keeps the handles alive

sub frame {
    my ($opcode, $payload) = @_;
    my $size = length $payload;
    return pack('CC', 0x80 | $opcode, $size) . $payload if $size < 126;
    return pack('CCn', 0x80 | $opcode, 126, $size) . $payload;
}

# Takes the first frame out of a buffer. Returns: opcode and payload; nothing where it is not there as a whole.
sub take_frame {
    my ($buffer) = @_;
    return if length $$buffer < 2;
    my ($first, $second) = unpack 'CC', $$buffer;
    my ($size, $at) = ($second & 0x7f, 2);
    if ($size == 126) {
        return if length $$buffer < 4;
        ($size, $at) = (unpack('x2 n', $$buffer), 4);
    } elsif ($size == 127) {
        return if length $$buffer < 10;
        ($size, $at) = (unpack('x2 Q>', $$buffer), 10);
    }
    my $masked = $second & 0x80;
    my $head = $at + ($masked ? 4 : 0);
    return if length $$buffer < $head + $size;
    my $mask = $masked ? substr $$buffer, $at, 4 : "\0\0\0\0";
    my $payload = substr $$buffer, $head, $size;
    substr $$buffer, 0, $head + $size, '';
    $payload ^= substr $mask x (1 + $size / 4), 0, $size if $mask ne "\0\0\0\0";
    return ($first & 0x0f, $payload);
}

sub read_inward {
    my ($client, $local) = @_;
    while (my ($opcode, $payload) = take_frame(\$client->{rbuf})) {
        if ($opcode == CLOSE) {
            $client->push_write(frame(CLOSE, $payload));
            $local->push_shutdown;
        } elsif ($opcode == PING) {
            $client->push_write(frame(PONG, $payload));
        } elsif ($opcode <= BINARY) {
            $local->push_write($payload);
        }
    }
}

sub read_outward {
    my ($local, $client) = @_;
    while (length $local->{rbuf}) {
        $client->push_write(frame(BINARY, substr $local->{rbuf}, 0, MOST_PAYLOAD, ''));
    }
}

sub drop {
    for my $handle (@_) {
        delete $clients{$handle};
        $handle->destroy;
    }
}

sub refuse {
    my ($client, $status) = @_;
    $client->push_write("HTTP/1.1 $status\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    $client->on_drain(sub { drop($client) });
}

sub join_sides {
    my ($client, $socket) = @_;
    my $local = AnyEvent::Handle->new(fh => $socket, on_error => sub { drop($_[0], $client) });
    $local->on_eof(sub {
        $client->push_write(frame(CLOSE, pack 'n', 1000));
        $client->on_drain(sub { drop($client, $local) });
    });
    $client->on_error(sub { drop($client, $local) });
    $client->on_eof(sub { drop($client); $local->on_drain(sub { drop($local) }) });
    $local->on_read(sub { read_outward($local, $client) });
    $client->on_read(sub { read_inward($client, $local) });
}

sub upgrade {
    my ($client, $head) = @_;
    my ($path) = $head =~ /\AGET \S*[?&]socket=([^\s&]+)/;
    my %fields = map { /\A([^:]+):\s*(.*?)\s*\z/ ? (lc $1 => $2) : () } split /\r\n/, $head;
    my $key = $fields{'sec-websocket-key'};
    return refuse($client, '400 no websocket') if !defined $path || !defined $key;
    $path =~ s/%([0-9A-Fa-f]{2})/chr hex $1/ge;
    tcp_connect 'unix/', $path, sub {
        my ($socket) = @_ or return refuse($client, '502 no such socket');
        my $accept = sha1_base64($key . GUID) . '=';    # which that function leaves out
        my $protocol = $fields{'sec-websocket-protocol'};
        $client->push_write(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
                . "Sec-WebSocket-Accept: $accept\r\n"
                . (defined $protocol ? "Sec-WebSocket-Protocol: $protocol\r\n" : '') . "\r\n");
        join_sides($client, $socket);
    };
}

my ($port, $certificate, $private) = @ARGV;
my $tls = AnyEvent::TLS->new(method => 'any', cert_file => $certificate, key_file => $private);
tcp_server '127.0.0.1', $port, sub {
    my $client = AnyEvent::Handle->new(
        fh => $_[0], tls => 'accept', tls_ctx => $tls, no_delay => 1, on_error => sub { drop($_[0]) });
    $clients{$client} = $client;
    $client->push_read(line => qr/\r\n\r\n/, sub { upgrade(@_) });
};
AnyEvent->condvar->recv;
