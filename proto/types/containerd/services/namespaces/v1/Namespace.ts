// Original file: proto/containerd/namespaces.proto


export interface Namespace {
  'name'?: (string);
}

export interface Namespace__Output {
  'name': (string);
}
