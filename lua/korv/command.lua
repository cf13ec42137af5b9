--- The command `korv`: `serve`, `call`, `stream`, `describe` and `keygen`. Everything that it does goes through the modules that a program
-- would use.
-- @module korv.command

local argparse = require "argparse"
local core = require "korv.core"
local escape = require "korv.escape"
local help = require "korv.help"
local keygen = require "korv.keygen"
local korv = require "korv"
local pretty = require "korv.pretty"
local serve = require "korv.serve"
local uv = require "luv"

local command = {}

local USAGE, FAILED = 64, 1
local WATCH_MS = 500
local BROKEN_PIPE = 32 -- EPIPE

local function complain(...) io.stderr:write("korv: ", string.format(...), "\n") end

local unwritten -- why what was to be printed could not be, as on a full disk: that is no success. A reader that has had enough is one

local function noted(ok, problem, code)
  if not ok and code ~= BROKEN_PIPE then unwritten = unwritten or problem end
  return ok ~= nil
end

local function put(...) return noted(io.stdout:write(...)) end

-- Converters for argparse: a value, or nil and what is wrong with it.
local function whole_number(name, least, most)
  return function(text)
    local number = math.tointeger(tonumber(text))
    if number and number >= least and number <= most then return number end
    return nil, ("%s must be a whole number from %d to %d, not '%s'"):format(name, least, most, text)
  end
end

local function seconds(name)
  return function(text)
    local number = tonumber(text)
    if number and number > 0 and number < 1e9 then return number end
    return nil, ("%s must be a positive number of seconds, not '%s'"):format(name, text)
  end
end

-- serve -----------------------------------------------------------------------------------------------------------------------------

local function workers(text)
  if text == "auto" then return #uv.cpu_info() end
  return whole_number("--workers", 1, 1024)(text)
end

local function add_serve(parser)
  local added = parser:command("serve", "Serve endpoint scripts.")
  added:argument("SCRIPT", "A script, or a folder that stands for its *.lua."):target "script":args "+"
  added:option("--host", "The address to listen on (default: all interfaces, IPv6 and IPv4)."):argname "ADDR"
  added:option("--port", "The port; 0 takes a free one (default: 8022)."):argname "N":convert(whole_number("--port", 0, 65535))
  added:option("--host-key", "A host key; made where it is missing (default: ssh_host_ed25519_key). May be given again.")
    :argname "FILE":count "*"
  added:option("--authorized-keys", "Who may log in (default: authorized_keys). May be given again."):argname "FILE":count "*"
  added:option("--workers", "How many processes serve; auto: one for each processor (default: 1)."):argname "N":convert(workers)
  added:flag("--no-watch", "Load scripts and keys anew on SIGHUP only, not whenever they change.")
  added:flag("--check", "Load everything, say what was found, and end.")
  added:option("--drain", "Seconds that requests under way get when the server is told to end (default: 30).")
    :argname "S":convert(seconds "--drain")
  added:option("--log-level", "What goes to stderr at the least: debug, info (the default; a line for each request), warn or error.")
    :argname "LEVEL":choices { "debug", "info", "warn", "error" }
  added:option("--log-format", "text or json (default: text on a terminal, else json)."):argname "FORMAT":choices { "text", "json" }
  added:epilog [[
Signals: SIGTERM and SIGINT let requests under way end, a second one ends at once; SIGHUP loads scripts and keys anew; SIGUSR2 starts a
new server on the same sockets and lets this one end.

Examples:
  cat ~/.ssh/id_ed25519.pub >> authorized_keys
  korv serve --port 8022 endpoints/
  korv serve --workers auto --no-watch --log-level warn endpoints/]]
end

function command.serve(options)
  local status, message = serve(options)
  if message then complain("%s", message) end
  return status
end

-- What call, stream and describe have in common ---------------------------------------------------------------------------------------

local function add_target(added)
  added:argument("HOST", "[USER@]HOST[:PORT]; an IPv6 address in brackets: [::1]:8022."):target "target"
end

local function add_request(added)
  added:argument("VERB", "GET, STORE, UPDATE or DELETE."):target "verb":convert(string.upper)
  added:argument("RESOURCE", "Such as /hello or '/search?q=lua'."):target "resource"
  added:argument("BODY", "JSON; - reads it from standard input."):target "body":args "?"
end

local function add_connection(added)
  added:option("-i --identity", "A private key (default: ~/.ssh/id_ed25519, id_ecdsa, id_rsa). May be given again.")
    :argname "KEY":count "*"
  added:option("--known-hosts", "The keys of known hosts (default: ~/.ssh/known_hosts)."):argname "FILE"
  added:flag("--accept-new", "Add the key of an unknown host to that file; a changed one is refused all the same.")
  added:flag("--ssh", "Go through the ssh command, with its configuration, agent and jump hosts.")
end

local function add_timeout(added, default)
  added:option("--timeout", ("Seconds to wait (default: %s)."):format(default)):argname "S":convert(seconds "--timeout")
end

-- [USER@]HOST[:PORT]. nil: it is none.
local function parse_target(text)
  local user, rest = text:match "^(.+)@([^@]*)$"
  rest = rest or text
  local host, port = rest:match "^%[([^%[%]]+)%]:(%d+)$"
  if not host then host = rest:match "^%[([^%[%]]+)%]$" end
  if not host then host, port = rest:match "^([^:]+):(%d+)$" end
  if not host then host = rest:match "^[^:%[%]@]+$" end
  port = tonumber(port)
  if port and (port < 1 or port > 65535) then return nil end
  return host, port, user
end

local function read_body(text)
  if text == "-" then text = io.read "a" end
  if text == nil then return nil end
  local body, message = korv.json.decode(text)
  if body == nil then return nil, ("the body is not JSON: %s (text needs quotes of its own: '\"text\"')"):format(message) end
  return body
end

local function is_terminal(fd) return uv.guess_handle(fd) == "tty" end

-- What may be behind a 404. It is said after the call only: the first korv's servers may know such verbs and resources.
local function explain(options)
  local oddities = {}
  oddities[1] = help.odd_verb(options.verb)
  oddities[#oddities + 1] = help.odd_resource(options.resource)
  if #oddities > 0 then complain("%s", table.concat(oddities, "; ")) end
end

-- Anything but a success, on stderr; options: of what was asked. Returns the exit status.
local function show_failure(response, options)
  local body = korv.json.encode(response.body)
  io.stderr:write(("%d %s\n"):format(response.code, is_terminal(2) and escape.json(body) or body))
  if response.code == 404 then explain(options) end
  return response.code // 100
end

local function is_success(response) return response.code >= 200 and response.code <= 299 end

local function new_client(options)
  local host, port, user = parse_target(options.target)
  if not host then return nil, ("%s is not [USER@]HOST[:PORT]"):format(options.target), USAGE end
  local client, message = korv.client {
    host = host, port = port, user = user, client_keys = #options.identity > 0 and options.identity or nil,
    known_hosts = options.known_hosts, accept_new = options.accept_new, ssh = options.ssh, timeout = options.timeout,
  }
  return client, message, FAILED
end

-- The interpreter's own handler of Ctrl-C raises where Lua runs next, and a loop that waits runs none. Once libuv has had the signal it is
-- as it was at first: it ends the process, and with that the connection, and what the server does for it.
local function end_at_interrupt()
  local signal = uv.new_signal()
  signal:start("sigint", function() end)
  signal:close()
end

-- Calls act with a client, which is closed behind it: act returns the exit status, or nil and why there was no answer.
local function with_client(options, act)
  end_at_interrupt()
  local client, message, failed = new_client(options)
  local status
  if client then
    status, message = act(client)
    client:close()
  end
  if status then return status end
  complain("%s", message)
  return failed
end

-- The same with the body that was given.
local function with_body(options, act)
  local body, message = read_body(options.body)
  if message then
    complain("%s", message)
    return USAGE
  end
  return with_client(options, function(client) return act(client, body) end)
end

-- call ------------------------------------------------------------------------------------------------------------------------------

local function add_call(parser)
  local added = parser:command("call", "Call an endpoint and print the body of its answer.")
  add_target(added)
  add_request(added)
  added:flag("--raw", "Print a body that is a string as it stands, without JSON's quotes.")
  add_connection(added)
  add_timeout(added, "30")
  added:epilog [[
What is not a success goes to standard error as one line, `404 null`, and the exit status is the first digit of its code; 1 is a
connection that failed. Behind a 404 another line tells of a resource that does not begin with / and of a verb that is none.

Examples:
  korv call localhost GET /hello
  korv call -i ~/.ssh/id_ed25519 api.example:8022 STORE /users/ann '{"age": 7}'
  echo '{"age": 7}' | korv call api.example STORE /users/ann -
  korv call --raw api.example GET '/korv/metrics?format=prometheus']]
end

local function show(response, options)
  if not is_success(response) then return show_failure(response, options) end
  if options.raw and type(response.body) == "string" then
    put(response.body)
    return 0
  end
  put(is_terminal(1) and pretty(response.body) or korv.json.encode(response.body), "\n")
  return 0
end

function command.call(options)
  return with_body(options, function(client, body)
    local response, message = client:call(options.verb, options.resource, body)
    if not response then return nil, message end
    return show(response, options)
  end)
end

-- stream ----------------------------------------------------------------------------------------------------------------------------

local function add_stream(parser)
  local added = parser:command("stream", "Call an endpoint and print what it sends, an item a line, as it comes.")
  add_target(added)
  add_request(added)
  add_connection(added)
  add_timeout(added, "none")
  added:epilog [[
It goes on until the endpoint ends, Ctrl-C is pressed, or whoever reads its output has had enough: the endpoint is cancelled then. A body
that the endpoint returns at its end is a last line. Failures and exit status are those of korv call.

Examples:
  korv stream localhost GET '/ticks?every=1'
  korv stream api.example GET /events | head -3]]
end

-- Calls gone() once nobody reads our output any more, though there may be nothing to write that would tell.
local function watch_reader(gone)
  local timer = uv.new_timer()
  timer:start(0, WATCH_MS, function()
    if core.hung_up(1) then gone() end
  end)
  timer:unref()
end

-- At once. (A stdout that is buffered by lines would lose what went wrong.)
local function write_line(body)
  local text = korv.json.encode(body)
  return put(is_terminal(1) and escape.json(text) or text, "\n") and noted(io.stdout:flush())
end

-- The end of a stream: nil and a message where it broke off.
local function show_end(items, options, problem)
  if not items.code then return not problem and 0 or nil, problem end -- given up by us
  if not is_success(items) then return show_failure(items, options) end
  if items.body ~= korv.null then write_line(items.body) end
  return 0
end

local function print_items(client, options, body)
  local next_item, items = client:stream(options.verb, options.resource, body, { timeout = options.timeout })
  watch_reader(function() items:cancel() end)
  local item, problem = next_item(items)
  while item ~= nil and not problem do
    if not write_line(item) then items:cancel() end
    item, problem = next_item(items)
  end
  return show_end(items, options, problem)
end

function command.stream(options)
  return with_body(options, function(client, body) return print_items(client, options, body) end)
end

-- describe --------------------------------------------------------------------------------------------------------------------------

local function prefix(text)
  if text:find "^/." then return (text:gsub("/+$", "")) end
  return nil, ("--prefix must begin with a slash, such as /korv, not '%s'"):format(text)
end

local function add_describe(parser)
  local added = parser:command("describe", "List the endpoints of a server that you may call.")
  add_target(added)
  added:flag("--json", "Print what the server answers, as JSON.")
  added:option("--prefix", "Where the server describes itself."):argname "RESOURCE":default "/korv":convert(prefix)
  add_connection(added)
  add_timeout(added, "30")
  added:epilog [[
Examples:
  korv describe localhost
  korv describe --json api.example | jq -r '.[].resource']]
end

local function is_list_of_endpoints(body)
  if type(body) ~= "table" then return false end
  for _, endpoint in ipairs(body) do
    if type(endpoint) ~= "table" or type(endpoint.verb) ~= "string" or type(endpoint.resource) ~= "string" then return false end
  end
  return #body > 0 or next(body) == nil
end

-- A text of the server's, for a line on a terminal.
local function plain(text) return type(text) == "string" and escape.line((text:gsub("[%c%s]+", " "))) or "" end

-- nil where the endpoint asks for none.
local function plain_roles(roles)
  local list = {}
  for i, role in ipairs(type(roles) == "table" and roles or {}) do list[i] = plain(role) end
  return #list > 0 and ("[roles: %s]"):format(table.concat(list, ", ")) or nil
end

local function print_columns(endpoints)
  local widest = 0
  for _, endpoint in ipairs(endpoints) do widest = math.max(widest, utf8.len(plain(endpoint.resource))) end
  for _, endpoint in ipairs(endpoints) do
    local resource = plain(endpoint.resource)
    local padding = (" "):rep(widest - utf8.len(resource))
    local words = { plain(endpoint.doc), plain_roles(endpoint.roles) }
    if words[1] == "" then table.remove(words, 1) end
    local line = ("%-6s  %s%s  %s"):format(plain(endpoint.verb), resource, padding, table.concat(words, "  "))
    put((line:gsub(" +$", "")), "\n")
  end
end

local function show_description(response, options, resource)
  if response.code == 404 then
    complain("%s does not describe itself: it has no GET %s. It is an older or another korv, or its introspection is off or elsewhere "
      .. "(--prefix)", options.target, resource)
    return response.code // 100
  end
  if options.json or not is_success(response) then return show(response, options) end
  if not is_list_of_endpoints(response.body) then
    complain("what %s answers to GET %s is no list of endpoints; korv describe --json shows it", options.target, resource)
    return FAILED
  end
  print_columns(response.body)
  return 0
end

function command.describe(options)
  local resource = options.prefix .. "/endpoints"
  return with_client(options, function(client)
    local response, message = client:get(resource)
    if not response then return nil, message end
    return show_description(response, options, resource)
  end)
end

-- keygen ----------------------------------------------------------------------------------------------------------------------------

local COMMENT_BYTES = 1024

local function comment(text)
  if not text:find "%c" and #text <= COMMENT_BYTES then return text end
  return nil, ("--comment must be one line of at most %d bytes"):format(COMMENT_BYTES)
end

local function add_keygen(parser)
  local added = parser:command("keygen", "Make a key, for a client or a server.")
  added:argument("FILE", "Where the private key goes; the public one goes to FILE.pub (default: ~/.ssh/id_ed25519).")
    :target "file":args "?"
  added:option("-C --comment", "Whose key it is: the name by which endpoints know its owner (default: user@machine).")
    :argname "TEXT":convert(comment)
  added:epilog [[
The key is ed25519, in OpenSSH's format, without a passphrase; `ssh-keygen -p -f FILE` gives it one. A file that exists is never replaced.

Examples:
  korv keygen
  korv keygen -C deploy deploy_key
  korv keygen ssh_host_ed25519_key]]
end

function command.keygen(options)
  local ok, message = keygen(options)
  if ok then return 0 end
  complain("%s", message)
  return FAILED
end

-- The command line ------------------------------------------------------------------------------------------------------------------

local COMMANDS = { "serve", "call", "stream", "describe", "keygen" }
local ADD = { serve = add_serve, call = add_call, stream = add_stream, describe = add_describe, keygen = add_keygen }

local function new_parser()
  local parser = argparse("korv", "An API over SSH: endpoints are Lua functions, clients log in with the SSH keys that they have.")
  parser:command_target "command"
  parser:require_command(true)
  parser:flag("--version", "Print the version."):action(function()
    print("korv " .. korv.version)
    os.exit(0)
  end)
  for _, name in ipairs(COMMANDS) do ADD[name](parser) end
  parser:epilog [[
`korv COMMAND --help` tells more of each, with examples.

Examples:
  korv keygen
  korv serve endpoints/
  korv call localhost GET /hello]]
  return parser
end

-- A number as body would be taken for an option.
local function guard_number(arguments)
  local last = #arguments
  local has_body = arguments[1] == "call" or arguments[1] == "stream"
  if last > 4 and has_body and arguments[last]:find "^%-%d" then table.insert(arguments, last, "--") end
end

local function refuse(arguments, message)
  local name = ADD[arguments[1]] and " " .. arguments[1] or ""
  if name == "" then message = ("%s\nthe commands are %s"):format(message, table.concat(COMMANDS, ", ")) end
  message = message:gsub("\nDid you mean", ": did you mean"):gsub("%s*\n%s*", "; ")
  complain("%s%s korv%s --help", message, message:find "%?$" and " See" or "; see", name)
  return USAGE
end

--- Runs the command.
-- @tparam {string,...} arguments
-- @treturn int the exit status
function command.main(arguments)
  guard_number(arguments)
  local ok, options = new_parser():pparse(arguments)
  if not ok then return refuse(arguments, options) end
  local status = command[options.command](options)
  noted(io.stdout:flush())
  if status ~= 0 or not unwritten then return status end
  complain("cannot write to standard output: %s", unwritten)
  return FAILED
end

return command
