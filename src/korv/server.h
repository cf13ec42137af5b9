/* What server.c and request.c share. */
#ifndef KORV_SERVER_H
#define KORV_SERVER_H

#include <sys/queue.h>

#include "korv/korv.h"

enum { ID_BYTES = 256 };

typedef struct request {
  LIST_ENTRY(request) link;
  channel *channel; /* NULL: gone */
  server *server;
  wire_encoding encoding;
  size_t id_len;
  char id[ID_BYTES]; /* as its bytes stood in the message */
} request;

typedef LIST_HEAD(request_list, request) request_list;

struct server {
  hub *hub;
  net_listener *listener;
  int handler, failed, authorize, closed; /* Lua functions */
  int request_meta;                       /* the metatable of request tables */
  int self;                               /* keeps the userdata while a connection may need it */
  wire_limits in;
  host_json_limits json;
  size_t in_flight_most, queued_most;
  request_list spare;   /* to be used again */
  request_list orphans; /* whose channel has gone while they ran */
};

struct channel {
  server *server;
  net_channel *net;
  wire_reader *reader;
  int peer; /* the session's table, in the registry; the session owns the reference */
  size_t in_flight;
  request_list requests;
  bool paused, ended; /* ended: no more requests will come */
};

bool channel_is_full(const channel *c);
void channel_less_busy(channel *c); /* an answer is out: go on reading, or finish */

#endif
