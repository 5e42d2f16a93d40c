(** @statement@

    Written by Assay for the model with weights (SHA-256)
    @sha@.

    [E], [W] and [U] are its embedding, linear map and unembedding: each entry is the float of the model divided by
    2^@e@, 2^@w@ and 2^@u@. Logits come out divided by the product of these powers, which is positive: one is larger
    than another exactly if it is larger in the model. The theorem [accuracy] says how many inputs there are whose
    largest token has a strictly larger logit than every other token. *)

From Coq Require Import ZArith List Lia Bool FinFun.
Import ListNotations.
Open Scope Z_scope.

Definition E : list (list Z) := @E@.
Definition W : list (list Z) := @W@.
Definition U : list (list Z) := @U@.
Definition n : nat := @n@.
Definition v : nat := length U.
Definition d : nat := length W.

(** ** The model, and what is claimed *)

Fixpoint dot (x y : list Z) : Z :=
  match x, y with a :: x', b :: y' => a * b + dot x' y' | _, _ => 0 end.

Fixpoint add (x y : list Z) : list Z :=
  match x, y with a :: x', b :: y' => a + b :: add x' y' | _, _ => [] end.

Definition apply (m : list (list Z)) (x : list Z) : list Z := map (fun row => dot row x) m.

Definition hidden (s : list nat) : list Z :=
  fold_right (fun t x => add (nth t E []) x) (repeat 0 d) s.

Definition logits (s : list nat) : list Z := apply U (apply W (hidden s)).

Definition input (s : list nat) : Prop := length s = n /\ Forall (fun t => (t < v)%nat) s.

Definition correct (s : list nat) : Prop :=
  forall x, (x < v)%nat -> x <> list_max s -> nth x (logits s) 0 < nth (list_max s) (logits s) 0.

(** ** Linearity: logits are sums of rows of a table *)

Lemma dot_zeros : forall w k, dot w (repeat 0 k) = 0.
Proof. induction w; destruct k; simpl; auto. rewrite IHw. lia. Qed.

Lemma dot_add : forall w x y, length x = length y -> dot w (add x y) = dot w x + dot w y.
Proof.
  induction w as [|a w IH]; intros x y H; [reflexivity|].
  destruct x, y; simpl in *; try discriminate; auto. rewrite IH; lia.
Qed.

Lemma add_length : forall x y, length x = length y -> length (add x y) = length x.
Proof. induction x; destruct y; simpl; intros; try discriminate; auto. Qed.

Lemma apply_length : forall m x, length (apply m x) = length m.
Proof. intros. apply map_length. Qed.

Lemma apply_zeros : forall m k, apply m (repeat 0 k) = repeat 0 (length m).
Proof. induction m; intros; simpl; auto. rewrite dot_zeros. f_equal. apply IHm. Qed.

Lemma apply_add : forall m x y, length x = length y -> apply m (add x y) = add (apply m x) (apply m y).
Proof. induction m; intros; simpl; auto. rewrite dot_add by auto. f_equal. now apply IHm. Qed.

Definition table : list (list Z) := map (fun e => apply U (apply W e)) E.

Definition total (T : list (list Z)) (s : list nat) : list Z :=
  fold_right (fun t x => add (nth t T []) x) (repeat 0 v) s.

Lemma shapes : length E = v /\ Forall (fun e => length e = d) E.
Proof.
  split; [vm_compute; reflexivity|].
  apply Forall_forall. intros e H.
  assert (F : forallb (fun e => Nat.eqb (length e) d) E = true) by (vm_compute; reflexivity).
  rewrite forallb_forall in F. apply Nat.eqb_eq. now apply F.
Qed.

Lemma row_length : forall t, (t < v)%nat -> length (nth t E []) = d.
Proof.
  intros t H. destruct shapes as [L F]. rewrite Forall_forall in F.
  apply F, nth_In. now rewrite L.
Qed.

Lemma row_table : forall t, (t < v)%nat -> nth t table [] = apply U (apply W (nth t E [])).
Proof.
  intros t H. unfold table. rewrite <- (map_nth (fun e => apply U (apply W e))).
  apply nth_indep. rewrite map_length. destruct shapes as [L _]. now rewrite L.
Qed.

Lemma hidden_length : forall s, Forall (fun t => (t < v)%nat) s -> length (hidden s) = d.
Proof.
  induction 1 as [|t s H F IH]; unfold hidden; cbn [fold_right]; [apply repeat_length|].
  fold (hidden s). rewrite add_length; rewrite row_length by assumption; auto.
Qed.

Lemma logits_cons : forall t s, Forall (fun t => (t < v)%nat) (t :: s) ->
  logits (t :: s) = add (apply U (apply W (nth t E []))) (logits s).
Proof.
  intros t s F. inversion F; subst. unfold logits.
  change (hidden (t :: s)) with (add (nth t E []) (hidden s)).
  rewrite (apply_add W); [|rewrite hidden_length, row_length; auto].
  apply apply_add. now rewrite !apply_length.
Qed.

Lemma logits_total : forall s, Forall (fun t => (t < v)%nat) s -> logits s = total table s.
Proof.
  induction s as [|t s IH]; intros F.
  - unfold logits. change (hidden []) with (repeat 0 d). rewrite !apply_zeros. reflexivity.
  - rewrite logits_cons by assumption. inversion F; subst.
    change (total table (t :: s)) with (add (nth t table []) (total table s)).
    now rewrite row_table, IH.
Qed.

(** ** The check, and that it decides correctness *)

Fixpoint below (m : nat) (own : Z) (r : list Z) {struct r} : bool :=
  match r, m with
  | [], _ => true
  | _ :: r', O => forallb (fun y => y <? own) r'
  | y :: r', S m' => (y <? own) && below m' own r'
  end.

Lemma below_spec : forall r m own,
  below m own r = true <-> forall x, (x < length r)%nat -> x <> m -> nth x r 0 < own.
Proof.
  induction r as [|y r IH]; intros m own; simpl.
  - split; [intros _ x L; lia | intros _; reflexivity].
  - destruct m as [|m].
    + rewrite forallb_forall. split.
      * intros H x L N. destruct x as [|x]; [contradiction|].
        apply Z.ltb_lt, H, nth_In. lia.
      * intros H z I. apply (In_nth _ _ 0) in I. destruct I as [x [L <-]].
        apply Z.ltb_lt. apply (H (S x)); lia.
    + rewrite andb_true_iff, IH, Z.ltb_lt. split.
      * intros [A B] x L N. destruct x as [|x]; [exact A|]. apply B; lia.
      * intros H. split; [apply (H O); lia|].
        intros x L N. apply (H (S x)); lia.
Qed.

Definition check (T : list (list Z)) (s : list nat) : bool :=
  let r := total T s in let m := list_max s in below m (nth m r 0) r.

Lemma check_spec : forall s, Forall (fun t => (t < v)%nat) s -> check table s = true <-> correct s.
Proof.
  intros s F. unfold check, correct. rewrite below_spec, <- logits_total by assumption.
  unfold logits at 1. rewrite apply_length. reflexivity.
Qed.

(** ** All inputs, once each *)

Fixpoint sequences (k : nat) : list (list nat) :=
  match k with
  | O => [[]]
  | S k' => flat_map (fun t => map (cons t) (sequences k')) (seq 0 v)
  end.

Lemma sequences_spec : forall k s,
  In s (sequences k) <-> length s = k /\ Forall (fun t => (t < v)%nat) s.
Proof.
  induction k as [|k IH]; intros s; cbn [sequences].
  - split.
    + intros [<-|[]]. auto.
    + intros [L _]. destruct s; [now left | discriminate].
  - rewrite in_flat_map. split.
    + intros [t [I M]]. apply in_map_iff in M. destruct M as [s' [<- M]].
      apply IH in M. destruct M as [L F]. apply in_seq in I. simpl. split; [lia|].
      constructor; [lia | exact F].
    + intros [L F]. destruct s as [|t s]; [discriminate|]. inversion F; subst.
      exists t. split; [apply in_seq; lia|]. apply in_map. apply IH. simpl in L. split; [lia | assumption].
Qed.

Lemma nodup_app : forall (A : Type) (l r : list A),
  NoDup l -> NoDup r -> (forall x, In x l -> ~ In x r) -> NoDup (l ++ r).
Proof.
  induction l as [|a l IH]; intros r L R D; simpl; [exact R|].
  inversion L; subst. constructor.
  - rewrite in_app_iff. intros [I|I]; [contradiction|]. now apply (D a); [left|].
  - apply IH; auto. intros x I. apply D. now right.
Qed.

Lemma nodup_prefixes : forall (l : list nat) (S : list (list nat)),
  NoDup l -> NoDup S -> NoDup (flat_map (fun t => map (cons t) S) l).
Proof.
  induction l as [|t l IH]; intros S L D; simpl; [constructor|].
  inversion L; subst. apply nodup_app.
  - apply Injective_map_NoDup; [|exact D]. intros x y H. now injection H.
  - now apply IH.
  - intros s I J. apply in_map_iff in I. destruct I as [s' [<- _]].
    apply in_flat_map in J. destruct J as [t' [I J]]. apply in_map_iff in J.
    destruct J as [s'' [Q _]]. injection Q as <- _. contradiction.
Qed.

Lemma sequences_nodup : forall k, NoDup (sequences k).
Proof.
  induction k; cbn [sequences]; [repeat constructor; auto|].
  apply nodup_prefixes; [apply seq_NoDup | assumption].
Qed.

Definition count (T : list (list Z)) (inputs : list (list nat)) : Z := Z.of_nat (length (filter (check T) inputs)).

Lemma counted : count table (sequences n) = @N@.
Proof. vm_cast_no_check (eq_refl (@N@)). Qed.

Theorem accuracy : exists right : list (list nat),
  NoDup right /\ (forall s, In s right <-> input s /\ correct s) /\ Z.of_nat (length right) = @N@.
Proof.
  exists (filter (check table) (sequences n)). split; [apply NoDup_filter, sequences_nodup|]. split.
  - intros s. rewrite filter_In, sequences_spec. unfold input. split.
    + intros [I C]. split; [exact I|]. now apply check_spec.
    + intros [I C]. split; [exact I|]. now apply check_spec.
  - exact counted.
Qed.

Print Assumptions accuracy.
