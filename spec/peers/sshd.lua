--- OpenSSH's own server, to ask what it does with a line of authorized_keys: one on a free port of the loopback, with a configuration of
-- its own, for whoever runs the specs. Where it is not installed nobody is asked.
-- @module spec.peers.sshd

local support = require "spec.support"
local uv = require "luv"

local sshd = {}

local PATH = "/usr/sbin/sshd"
local AT_ONCE = 8

local CONFIG = [[
Port %d
ListenAddress 127.0.0.1
HostKey %s
AuthorizedKeysFile %s
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 100
PidFile none
]]

--- Whether it can be asked.
function sshd.is_there() return uv.fs_access(PATH, "X") == true end

local function free_port()
  local tcp = uv.new_tcp()
  tcp:bind("127.0.0.1", 0)
  local port = tcp:getsockname().port
  tcp:close()
  return port
end

local function start(lines)
  if uv.getuid() == 0 then uv.fs_mkdir("/run/sshd", tonumber("755", 8)) end -- it insists
  local port = free_port()
  local config = CONFIG:format(port, support.key "sshd_host", support.write("sshd_keys", lines))
  local server = support.start { PATH, "-D", "-e", "-f", support.write("sshd_config", config) }
  server.port = port
  if not support.wait_for(function() return server.stderr:find "Server listening" or server:ended() end) or server:ended() then
    error(server:describe "does not listen")
  end
  return server
end

local function log_in(server, case, address)
  return support.start { "ssh", "-F", "none", "-i", support.key(case.name), "-p", tostring(server.port), "-b", address, "-o",
    "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o",
    "LogLevel=ERROR", uv.os_get_passwd().username .. "@127.0.0.1", "true" }
end

--- Tries to log in with keys.
-- @tparam {table,...} cases of each the `name` of a key and its `line` in authorized_keys; `theirs` is whether it was let in
-- @string address where they come from
function sshd.try(cases, address)
  local lines = {}
  for i, case in ipairs(cases) do lines[i] = case.line end
  local server = start(table.concat(lines))
  for first = 1, #cases, AT_ONCE do
    local running = {}
    for i = first, math.min(first + AT_ONCE - 1, #cases) do running[i] = log_in(server, cases[i], address) end
    for i, ssh in pairs(running) do
      ssh:wait(60)
      if ssh.code ~= 0 and not ssh.stderr:find "Permission denied" then error(ssh:describe "was not refused but failed") end
      cases[i].theirs = ssh.code == 0
    end
  end
  server:kill()
end

return sshd
