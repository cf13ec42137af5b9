--- Loads endpoint scripts: each returns a function that gets the app and registers on it.
-- @module korv.loader

local uv = require "luv"

local loader = {}

local function is_folder(path)
  local stat = uv.fs_stat(path)
  return stat and stat.type == "directory"
end

local ENTRIES = 64 -- read at once

-- The *.lua in a folder, in the order of their names. (luv's fs_scandir keeps something of each call for ever.)
local function scripts_in(folder)
  local names, open = {}, uv.fs_opendir(folder, nil, ENTRIES)
  local entries = open and uv.fs_readdir(open)
  while entries do
    for _, entry in ipairs(entries) do
      if entry.name:find "^[^.].*%.lua$" then names[#names + 1] = folder .. "/" .. entry.name end
    end
    entries = uv.fs_readdir(open)
  end
  if open then uv.fs_closedir(open) end
  table.sort(names)
  return names
end

--- The scripts that paths stand for.
-- @tparam {string,...} paths files, and folders, which stand for their *.lua
-- @treturn ?{string,...}
-- @treturn ?string message
-- @treturn ?string name
function loader.find(paths)
  local found = {}
  for _, path in ipairs(paths) do
    local list = { path }
    if is_folder(path) then
      list = scripts_in((path:gsub("/+$", "")))
      if #list == 0 then return nil, path .. ": no *.lua in this folder", "ENOENT" end
    end
    table.move(list, 1, #list, #found + 1, found)
  end
  return found
end

-- `require` finds what lies beside the script.
local function look_beside(path)
  local folder = path:match "^(.*)/[^/]*$" or "."
  local beside = folder .. "/?.lua;" .. folder .. "/?/init.lua;"
  if not package.path:find(beside, 1, true) then package.path = beside .. package.path end
end

-- One line that names the script, once.
local function failed(path, problem)
  local text = tostring(problem):match "^[^\n]*":gsub("(module '.-' not found):$", "%1, neither beside the script nor on Lua's path")
  if text:sub(1, #path + 1) ~= path .. ":" then text = path .. ": " .. text end
  return nil, text, "ELOAD"
end

--- Loads a script and lets it register its endpoints.
-- @tparam string path
-- @tparam App app
-- @treturn ?boolean true
-- @treturn ?string message with file and line
-- @treturn ?string name
function loader.load(path, app)
  look_beside(path)
  local chunk, problem = loadfile(path, "t")
  if not chunk then return failed(path, problem) end
  local ok, register = pcall(chunk)
  if not ok then return failed(path, register) end
  if type(register) ~= "function" then
    return failed(path, "a script returns a function that registers its endpoints: return function(app) … end")
  end
  ok, problem = pcall(register, app)
  if not ok then return failed(path, problem) end
  return true
end

return loader
