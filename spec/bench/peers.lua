--- The servers that scripts/bench measures: how each is made ready, started and stopped. A function for each returns what start takes, or
-- nil where the machine has not got it. It knows no row and measures nothing.
-- @module bench.peers

local process = require "bench.process"
local uv = require "luv"

local peers = {}

local START_S = 20

local ROOT = uv.fs_realpath(debug.getinfo(1, "S").source:match "^@(.*)/spec/bench/" or ".")
local KORV = uv.fs_realpath(os.getenv "KORV" or "") or ROOT .. "/scripts/korv"
local PROGRAMS = ROOT .. "/build/spec/bench/"

local folder -- of keys, certificates and configurations

--- The checkout.
peers.root = ROOT

--- The folder of the programs in C and Go.
peers.programs = PROGRAMS

--- A path in the folder that goes away at the end.
-- @string name
function peers.path(name) return folder .. "/" .. name end

local function build_go()
  if not process.has "go" then return end
  process.run { "env", "GO111MODULE=off", "GOPATH=/usr/share/gocode", "GOCACHE=" .. ROOT .. "/build/go-cache", "go", "build", "-o",
    PROGRAMS .. "go-korv", ROOT .. "/spec/bench/go/main.go" }
end

local function make_keys()
  for _, name in ipairs { "host_key", "client_key" } do
    process.run { "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", peers.path(name) }
  end
  process.run { "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
    "/CN=localhost", "-keyout", peers.path "certificate_key.pem", "-out", peers.path "certificate.pem" }
end

--- Builds everything and makes keys.
function peers.prepare()
  process.run { ROOT .. "/scripts/build", "--tests" }
  build_go()
  folder = assert(uv.fs_mkdtemp(uv.os_tmpdir() .. "/korv-bench-XXXXXX"))
  make_keys()
end

local function remove(directory)
  for name, kind in uv.fs_scandir_next, (uv.fs_scandir(directory)) do
    if kind == "directory" then remove(directory .. "/" .. name) else uv.fs_unlink(directory .. "/" .. name) end
  end
  uv.fs_rmdir(directory)
end

--- Removes what prepare has made in the temporary folder.
function peers.clean_up()
  if folder then remove(folder) end
end

local function free_port()
  local tcp = uv.new_tcp()
  assert(tcp:bind("127.0.0.1", 0))
  local port = tcp:getsockname().port
  tcp:close()
  return tostring(port)
end

-- ---- the servers --------------------------------------------------------------------------------------------------------------

--- korv.
-- @string name
-- @string ... scripts and options
function peers.korv(name, ...)
  return { name = name, command = { KORV, "serve", "--port", "0", "--host", "127.0.0.1", "--host-key", peers.path "host_key",
    "--authorized-keys", peers.path "client_key.pub", "--log-level", "warn", ... } }
end

--- korv with the two endpoints that all peers have.
function peers.hello() return peers.korv("korv", ROOT .. "/scripts/endpoints/hello.lua") end

local function with_keys(name, path)
  return { name = name, command = { path, "--host-key", peers.path "host_key", "--authorized-key", peers.path "client_key.pub" } }
end

--- The bare libssh responder.
function peers.bare() return with_keys("bare libssh", PROGRAMS .. "bare") end

--- The Go server.
function peers.go() return process.has "go" and with_keys("Go", PROGRAMS .. "go-korv") or nil end

--- The Python server.
function peers.python()
  if not pcall(process.run, { "/usr/bin/python3", "-c", "import asyncssh" }) then return nil end
  return { name = "Python", command = { "/usr/bin/python3", ROOT .. "/spec/peers/python_korv.py", "server", "--host-key",
    peers.path "host_key", "--authorized-keys", peers.path "client_key.pub" } }
end

--- nginx.
function peers.nginx()
  if not (process.has "nginx" and uv.fs_access("/usr/lib/nginx/modules/ngx_http_lua_module.so", "R")) then return nil end
  local port = free_port()
  local values = { FOLDER = folder, PORT = port }
  local config = process.read(ROOT .. "/spec/bench/nginx.conf"):gsub("@(%u+)@", values)
  return { name = "nginx", port = port, command = { "nginx", "-p", folder, "-e", "stderr", "-c",
    process.write(peers.path "nginx.conf", config) } }
end

local SSHD = [[
Port %s
ListenAddress 127.0.0.1
HostKey %s
AuthorizedKeysFile %s
Ciphers aes128-gcm@openssh.com
Compression no
StrictModes no
UsePAM no
PermitRootLogin yes
PidFile none
]]

--- OpenSSH's server.
function peers.sshd()
  if not uv.fs_access("/usr/sbin/sshd", "X") then return nil end
  if uv.getuid() == 0 then uv.fs_mkdir("/run/sshd", tonumber("755", 8)) end -- it insists
  local port = free_port()
  local config = SSHD:format(port, peers.path "host_key", peers.path "client_key.pub")
  return { name = "sshd", port = port, command = { "/usr/sbin/sshd", "-D", "-e", "-f", process.write(peers.path "sshd_config", config) } }
end

-- ---- starting and stopping ----------------------------------------------------------------------------------------------------

local function connects(port)
  local tcp, answer = uv.new_tcp(), nil
  tcp:connect("127.0.0.1", tonumber(port), function(problem) answer = problem or "connected" end)
  process.wait_until(function() return answer end, 1)
  tcp:close()
  return answer == "connected"
end

local function announced(server) return server.process.output:match "port (%d+)[^\n]*\n" end

-- A server that takes a port of its own choice says which; the others got theirs.
local function await_port(server)
  local deadline = uv.hrtime() + START_S * 1e9
  local given = server.port
  while not server.process.code and uv.hrtime() < deadline do
    local port = given or announced(server)
    if port and connects(port) then return port end
    local was = server.process.output
    process.wait_until(function() return server.process.code or server.process.output ~= was end, 0.05)
  end
  error(("%s does not listen:\n%s"):format(server.name, server.process.output), 0)
end

--- Starts a server and waits until it listens.
-- @tparam table server
-- @string cpu where it may run: a list as taskset takes it
function peers.start(server, cpu)
  server.process = process.start { "taskset", "--cpu-list", cpu, table.unpack(server.command) }
  server.process.name = server.name
  server.port = await_port(server)
end

--- Stops a server.
-- @tparam table server
function peers.stop(server) process.stop(server.process) end

--- The memory that a server's process has now.
-- @tparam table server
-- @treturn number KB
function peers.rss_kb(server)
  return tonumber(process.read(("/proc/%d/status"):format(server.process.pid)):match "VmRSS:%s*(%d+)")
end

return peers
